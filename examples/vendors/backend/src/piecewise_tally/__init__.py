"""An example platform that runs its pieces itself."""
