"""The command line: arguments to functions, results to the terminal. No science."""
