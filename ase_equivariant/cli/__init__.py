"""The command line: one file per command, each a thin layer over `workflows`; heavy imports wait inside functions."""
