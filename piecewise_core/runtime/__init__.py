"""What runs at every call: parameters, plans, dispatch."""
