"""Mode proxy: a reverse proxy terminates TLS and names the client in headers of each request."""
