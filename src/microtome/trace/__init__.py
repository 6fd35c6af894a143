"""Capture, edits, receipts: the only code that touches hooks."""
