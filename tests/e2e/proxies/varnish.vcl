# Varnish in front of event streams. For /etc/varnish/default.vcl.
vcl 4.1;

backend app {
    .host = "127.0.0.1";
    .port = "3000";
    # The heartbeat interval must be shorter than these, and than the varnishd parameter `pipe_timeout`
    # (60 seconds).
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 60s;
}

sub vcl_recv {
    # Otherwise every stream ends after the varnishd parameter `send_timeout` (600 seconds), even if data
    # flows, and a disconnected client is noticed some heartbeats later. HTTP/2 cannot be piped.
    if (req.http.Accept ~ "text/event-stream" && req.proto != "HTTP/2.0") {
        return (pipe);
    }
}

sub vcl_backend_response {
    # Not all of `text/`, because Varnish ignores `no-transform`. It streams event streams that are not
    # piped, too, and does not cache them because of their `Cache-Control: no-cache`.
    if (beresp.http.Content-Type ~ "^(text/(html|plain|css|xml)|application/(json|javascript|xml)|image/svg)") {
        set beresp.do_gzip = true;
    }
}
