"""torch.compile's door: graphs that Dynamo traced and guards, in pieces, captured."""
