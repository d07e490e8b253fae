//! The hosts of a Postgres URL, and the addresses of each host. This crate itself tries them one
//! after the other. `tokio-postgres` can do this, too, but has no time limit for a host that
//! accepts a connection and never answers.

use crate::{BoxError, random};
use std::{io, net::SocketAddr};
use tokio::net;
use tokio_postgres::{
    Config,
    config::{Host, LoadBalanceHosts},
};

const DEFAULT_PORT: u16 = 5432;

/// Splits the settings of a Postgres URL into the settings for each of its hosts. Returns an error
/// if the URL has no host, or if the numbers of its hosts, addresses and ports do not match.
pub(super) fn split(config: &Config) -> Result<Vec<Config>, BoxError> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err("the URL of Postgres has no host".into());
    }
    for (name, given) in [("host", hosts.len()), ("hostaddr", addresses.len())] {
        if given != 0 && given != count {
            return Err(format!("the URL of Postgres has {count} hosts and {given} values for {name}").into());
        }
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("the URL of Postgres has {count} hosts and {} ports", ports.len()).into());
    }
    Ok((0..count)
        .map(|n| {
            let mut one = without_hosts(config);
            match hosts.get(n) {
                Some(Host::Tcp(name)) => drop(one.host(name)),
                #[cfg(unix)]
                Some(Host::Unix(folder)) => drop(one.host_path(folder)),
                None => {}
            }
            addresses.get(n).map(|address| one.hostaddr(*address));
            one.port(ports.get(n).or(ports.first()).copied().unwrap_or(DEFAULT_PORT));
            one
        })
        .collect())
}

/// Returns a copy of the settings of a Postgres URL without its hosts, addresses and ports.
fn without_hosts(config: &Config) -> Config {
    let mut copy = Config::new();
    config.get_user().map(|user| copy.user(user));
    config.get_password().map(|password| copy.password(password));
    config.get_dbname().map(|name| copy.dbname(name));
    config.get_options().map(|options| copy.options(options));
    config.get_application_name().map(|name| copy.application_name(name));
    config.get_connect_timeout().map(|time| copy.connect_timeout(*time));
    config.get_tcp_user_timeout().map(|time| copy.tcp_user_timeout(*time));
    config.get_keepalives_interval().map(|time| copy.keepalives_interval(time));
    config.get_keepalives_retries().map(|retries| copy.keepalives_retries(retries));
    copy.keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .load_balance_hosts(config.get_load_balance_hosts());
    copy
}

/// Returns the hosts of a Postgres URL in the order of the connection attempts. This is the order
/// of the URL, or a random order if the URL contains `load_balance_hosts=random`.
pub(super) fn in_order(hosts: &[Config]) -> Vec<&Config> {
    let mut hosts: Vec<_> = hosts.iter().collect();
    if hosts.iter().any(|host| is_random(host)) {
        hosts.sort_by_cached_key(|_| random::bits());
    }
    hosts
}

/// Resolves the name of a Postgres host. Returns the settings for a connection to each of its
/// addresses, in the order of the connection attempts.
pub(super) async fn resolve(host: &Config) -> io::Result<Vec<Config>> {
    let ([Host::Tcp(name)], [], [port]) = (host.get_hosts(), host.get_hostaddrs(), host.get_ports()) else {
        return Ok(vec![host.clone()]);
    };
    let mut addresses: Vec<_> = net::lookup_host((name.as_str(), *port)).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name of the host has no address"));
    }
    if is_random(host) {
        addresses.sort_by_cached_key(|_| random::bits());
    }
    let resolved = addresses.into_iter().map(|address| {
        let mut host = host.clone();
        host.hostaddr(address.ip());
        host
    });
    Ok(resolved.collect())
}

fn is_random(host: &Config) -> bool {
    host.get_load_balance_hosts() == LoadBalanceHosts::Random
}

/// Returns the name of a Postgres host for error messages, with its address if it is known:
/// `one.internal at 10.0.0.1:5432`.
pub(super) fn name(host: &Config) -> String {
    let port = host.get_ports().first().copied().unwrap_or(DEFAULT_PORT);
    let address = host.get_hostaddrs().first().map(|address| SocketAddr::new(*address, port));
    match (host.get_hosts().first(), address) {
        // The name of the host is its address.
        (Some(Host::Tcp(name)), Some(address)) if *name == address.ip().to_string() => address.to_string(),
        (Some(Host::Tcp(name)), Some(address)) => format!("{name} at {address}"),
        (Some(Host::Tcp(name)), None) => format!("{name}:{port}"),
        #[cfg(unix)]
        (Some(Host::Unix(folder)), _) => format!("{}:{port}", folder.display()),
        (None, address) => address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Result<Vec<Config>, BoxError> {
        split(&url.parse().expect("the URL is valid"))
    }

    fn names(url: &str) -> Vec<String> {
        hosts(url).expect("the URL has hosts").iter().map(name).collect()
    }

    #[test]
    fn each_host_has_its_port_and_address() {
        assert_eq!(names("postgres://one,two"), ["one:5432", "two:5432"]);
        assert_eq!(names("postgres://one:1,two:2"), ["one:1", "two:2"]);
        assert_eq!(names("postgres://?host=one&host=two&port=3"), ["one:3", "two:3"]);
        assert_eq!(names("postgres://one:4,two:5?hostaddr=10.0.0.1,::1"), ["one at 10.0.0.1:4", "two at [::1]:5"]);
        assert_eq!(names("postgres://?hostaddr=10.0.0.1,10.0.0.2"), ["10.0.0.1:5432", "10.0.0.2:5432"]);
        #[cfg(unix)]
        assert_eq!(names("postgres:///db?host=/run/postgresql"), ["/run/postgresql:5432"]);
    }

    #[test]
    fn different_numbers_of_hosts_are_errors() {
        for (url, reason) in [
            ("postgres://", "no host"),
            ("postgres://one,two?hostaddr=10.0.0.1", "1 values for hostaddr"),
            ("postgres://?host=one&host=two&host=three&port=1,2", "2 ports"),
        ] {
            let error = hosts(url).expect_err(url).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn host_keeps_all_settings_of_its_url() {
        let url = "postgres://me:secret@one:1/db?options=-cgeqo%3Doff&application_name=app&sslmode=require\
            &sslnegotiation=direct&connect_timeout=3&tcp_user_timeout=4&keepalives=0&keepalives_idle=5\
            &keepalives_interval=6&keepalives_retries=7&target_session_attrs=read-write&channel_binding=require\
            &load_balance_hosts=random";
        let config: Config = url.parse().expect("the URL is valid");
        let [host] = &split(&config).expect("the URL has a host")[..] else { panic!("the URL has one host") };
        assert_eq!(format!("{host:?}"), format!("{config:?}"));
        assert_eq!(host.get_password(), config.get_password());
    }

    #[tokio::test]
    async fn resolved_host_keeps_its_name_and_one_address() {
        let [host] = &hosts("postgres://localhost:1").expect("the URL has a host")[..] else { panic!("one host") };
        let resolved = resolve(host).await.expect("the name has an address");
        for host in resolved {
            assert_eq!(host.get_hosts(), [Host::Tcp("localhost".to_owned())], "TLS checks this name");
            assert!(matches!(host.get_hostaddrs(), [address] if address.is_loopback()), "{host:?}");
        }
    }
}
