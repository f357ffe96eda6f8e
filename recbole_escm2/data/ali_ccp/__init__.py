"""Ali-CCP, Tianchi data set 408: its raw format, a converter, and a simulator of the format."""
