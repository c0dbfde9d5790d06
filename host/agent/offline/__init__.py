"""The embedded offline model: a transport under the real SDK that answers the Messages protocol by itself.

sentences   a person's plain words → steps of wishes (with phrases, when, wishes; pure)
replies     a request → the blocks of the next reply (with history, calls, report)
protocol    content blocks → JSON body or server-sent events
transport   the httpx2 transport that ties them together

Nothing is imported here, so that ``sentences`` and ``protocol`` stay usable without loading an HTTP library.
"""
