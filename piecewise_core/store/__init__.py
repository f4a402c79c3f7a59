"""The compile store: compiled pieces that outlive the process which compiled them.

An entry is a manifest, which says what the piece was and all that its code depends on, and an
artifact, which is the compiler's own. A store keeps entries by key and never looks inside an
artifact. Where they are kept is the store's business: files, memory, an archive.
"""
