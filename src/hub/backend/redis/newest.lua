-- Returns the newest id that the stream has ever had, or nil if the stream does not exist, and the
-- time of the server.
return { newest() or false, now }
