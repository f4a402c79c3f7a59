"""Static graphs: capture one size's pieces into a shared pool, replay them as plain steps."""
