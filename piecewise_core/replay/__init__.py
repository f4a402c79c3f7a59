"""What every replay does around its graphs, whichever front end captured them."""
