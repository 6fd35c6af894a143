"""Nulls, intervals and checks: pure functions over arrays; no method, task or model is imported here."""
