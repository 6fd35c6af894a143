"""The lab: research that records itself. Above the methods, which know nothing of it (docs/decisions/0020)."""
