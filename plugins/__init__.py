"""Built-in plugins, one algorithm a file, loaded through the same hooks as third-party ones."""
