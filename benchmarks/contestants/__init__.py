"""One file per contestant: a class `Contestant(folder)` with the jobs it can do."""
