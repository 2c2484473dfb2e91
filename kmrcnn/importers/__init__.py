"""Readers and writers of weight files, one format a file."""
