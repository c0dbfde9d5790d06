"""The embedded offline model: a transport under the real SDK that answers the Messages protocol by itself.

wishes      what a person's plain words ask for (pure)
replies     wishes and history → content blocks of the next reply
protocol    content blocks → JSON body or server-sent events
transport   the httpx2 transport that ties them together

Nothing is imported here, so that ``wishes`` and ``protocol`` stay usable without loading an HTTP library.
"""
