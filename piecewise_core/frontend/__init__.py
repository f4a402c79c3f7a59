"""What a user holds: sessions over regions, compiled modules and functions."""
