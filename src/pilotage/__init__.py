"""Pilotage: large language models in production, from one file."""
