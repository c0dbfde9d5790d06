"""The embedded offline model: a transport under the real SDK that answers the Messages protocol by itself.

wishes      a person's plain words → steps of wishes, by one table (with when; pure)
replies     a request → the blocks of the next reply
protocol    content blocks → JSON body or server-sent events
transport   the httpx2 transport that ties them together

Nothing is imported here, so that ``wishes`` and ``protocol`` stay usable without loading an HTTP library.
"""
