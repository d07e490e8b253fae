-- Returns the newest id that the stream ever had, or nil if there is no stream, and the time of the
-- server.
return { newest() or false, now }
