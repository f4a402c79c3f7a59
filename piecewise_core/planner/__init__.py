"""From the sizes of real calls to the sizes to capture and compile."""
