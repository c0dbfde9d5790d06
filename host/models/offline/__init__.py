"""The embedded offline model: a transport under the real SDK that answers the Messages protocol by itself.

wishes      a person's plain words → wishes and times, by one table (pure)
replies     a request → the next reply, and the transport that streams it
"""
