"""Tables of request metrics, and the analytics computed from them: totals, latency, timeline and costs."""
