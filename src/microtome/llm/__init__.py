"""Language models as tools for learning, and as instruments with a known error. Never required."""
