"""Transports: each sends one request and returns its reply; one for http, one for https, one for httpx."""
