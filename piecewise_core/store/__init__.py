"""The compile store: compiled pieces, and traces, that outlive the process which made them.

An entry is a manifest, which says what the piece was and all that its code depends on, and an
artifact, which is the compiler's own. A store keeps entries by key and never looks inside an
artifact. Where they are kept is the store's business: files, memory, an archive.

What holds, and who sees to it:

 1. A key names all that the artifact depends on. Enforced for what core can read (`environment`,
    `pieces`, `sources`): where it cannot tell, StoreError, and nothing is kept. The vendor's for
    ``hash_factors()`` and ``fingerprint()``: a flag left out there loads the wrong code.
 2. What is published was made under its ticket's factors. The caller's: switches of torch may turn
    while a compiler works, so they are asked again before the entry is made.
 3. An entry is there whole or not at all, whatever is killed. Enforced (`files`): written aside,
    synced, renamed.
 4. An entry that a store hands out is the one that its key names, undamaged. Enforced
    (`manifest`): checksums of manifest and artifact, and the key made anew from the factors.
 5. A reader never mixes two entries of one key. Enforced (`files`): it reads through one open
    directory, and looks again where that was replaced.
 6. Nobody but this user and root can have written what is read, since it is executed. Enforced
    (`directory`) for each directory and file. The caller's for archives and bundles. With
    ``trust="signed"`` a trusted key signed it too, under this very name; enforced (`admission`)
    for all of these before any byte is interpreted, and on the bytes that are then used.
 7. One process makes an artifact, the others wait and load it. Enforced (`single_flight`) where
    the file system has locks. A lock only saves work: nothing relies on it for right numbers.
 8. Inside a store's lock nobody waits for a lock whose holder may wait for the store's. The
    caller's (``Flight.make``): whoever compiles in the foreground holds ``compile_lock`` while it
    waits for the store, so a worker's thread that took them the other way would wait for ever.
 9. Code runs for no size outside ``serves``. Enforced that ``serves`` lies in ``box``
    (`manifest`). The caller's that other sizes run as written.
10. A store that fails costs compilations, never a call. Enforced (`fallback`, `single_flight`)
    for StoreError and OSError.
11. Pruning takes nothing that a living process writes or holds. Enforced (`pruning`): whoever
    writes holds its directory, and the kernel lets go of what the dead held.
12. Stores may be used by several threads, and in forked processes. Enforced: locks are free in a
    child (`afterfork`).
"""
