-- POST /v1/orders with bodies in turn and an Idempotency-Key of its own for every request.
--
-- TIDEMARK_BENCH_FILE   a file with one JSON body a line
-- TIDEMARK_BENCH_TOKEN  the access token to send
-- TIDEMARK_BENCH_RUN    eight hexadecimal digits, other ones in each run: keys never come twice

local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

local format = string.format
local head, run = "", ""
local rest, count, at, sent = {}, 0, 0, 0

function init(args)
   run = os.getenv("TIDEMARK_BENCH_RUN")
   head = table.concat({
      "POST /v1/orders HTTP/1.1",
      "Host: " .. wrk.headers["Host"],
      "Authorization: Bearer " .. os.getenv("TIDEMARK_BENCH_TOKEN"),
      "Content-Type: application/json",
      "Idempotency-Key: ",
   }, "\r\n")
   for body in io.lines(os.getenv("TIDEMARK_BENCH_FILE")) do
      count = count + 1
      rest[count] = "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
   end
   at = (number * 997) % count
end

function request()
   at = at % count + 1
   sent = sent + 1
   return head .. format("%s-%04x-4000-8000-%012x", run, number, sent) .. rest[at]
end
