"""Credentials are taken out of every text before it is written anywhere."""
