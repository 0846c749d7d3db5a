"""Who is let in: sockets, HTTP, hosts, origins and keys."""
