# Varnish in front of event streams: for /etc/varnish/default.vcl.
vcl 4.1;

backend app {
    .host = "127.0.0.1";
    .port = "3000";
    # Heartbeats have to be more frequent than these, and than varnishd's parameter `pipe_timeout` (60 seconds).
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 60s;
}

sub vcl_recv {
    # Otherwise every stream ends after varnishd's parameter `send_timeout` (600 seconds), whatever is sent, and a client
    # that goes is noticed some heartbeats later. HTTP/2 cannot be piped.
    if (req.http.Accept ~ "text/event-stream" && req.proto != "HTTP/2.0") {
        return (pipe);
    }
}

sub vcl_backend_response {
    # Not all of `text/`: Varnish does not heed `no-transform`. Event streams that were not piped go through as they
    # come, too, and their `Cache-Control: no-cache` keeps them out of the cache.
    if (beresp.http.Content-Type ~ "^(text/(html|plain|css|xml)|application/(json|javascript|xml)|image/svg)") {
        set beresp.do_gzip = true;
    }
}
