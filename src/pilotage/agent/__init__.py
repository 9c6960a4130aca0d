"""Beside each replica: warm-up, readiness, progress, stopping when idle, and the timing of its start.

Knows one engine on loopback. Never on the way of a token.
"""
