"""Where things are: loading, families, tokens, weights, facts."""
