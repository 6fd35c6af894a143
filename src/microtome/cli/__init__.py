"""The command line: one file per noun, no logic. Starts without torch, NumPy or pandas."""
