"""With other programs: browsers, brokers, proxies, containers, systemd, PostgreSQL's tools."""
