"""Tables of a batch's requests, and what is computed from them: totals, latency, timeline and costs."""
