"""From pieces to compiled code: one compilation per distinct piece and box."""
