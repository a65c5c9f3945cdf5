"""Transports, which send one request and return its reply: for http, for https, and through httpx."""
