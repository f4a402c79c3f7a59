"""Ranks that serve one model together: what they must do alike is agreed on before it is done.

A collective that one rank makes and another does not is a hang or a silently wrong number. A call
makes the collectives of the model as written, whatever serves it, so calls need no agreement. What
is done beside calls does: captures run the model once or twice more, verification once, and padded
calls have other sizes than their own. So no rank captures, frees or compares alone (`ranks`), each
attempt ends alike on all (`together`), and every collective in it is met at by all first. They meet
in the store of torch.distributed, never by a collective, which a dead rank would hang (`meeting`).
"""
