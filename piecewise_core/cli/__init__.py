"""The ``piecewise`` command, one module per subcommand; torch only where one needs it."""
