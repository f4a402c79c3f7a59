"""Whether rows that padding adds can change a call's own rows: decided operator by operator."""
