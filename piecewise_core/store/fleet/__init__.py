"""The second level of the compile store: what machines share, so that one of them compiles.

What holds, and who sees to it:

 1. Nothing that comes from there is believed. Enforced (`packing`, `admission`): the same checks
    as for a local entry, on bytes in memory, before they are used or kept.
 2. An object is there whole or not at all. Enforced (`disk`, `urls`): by the backend's own put, or
    written under another name and moved.
 3. A lease only saves work. Nothing relies on it for right numbers: entries are found by what they
    depend on, so two of one key serve alike.
 4. No clock is compared with another machine's. Enforced (`leases`): whoever waits measures how
    long a lease has not changed.
 5. A late holder publishes over nothing: a newer epoch fences it, and what is there stays.
    Enforced (`leases`, `level`).
 6. A level that fails, hangs or is slower than the compiler costs one warning and a bounded time,
    never a call. Enforced (`health`, `level`).
"""
