import http.server
visitors = 0
class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global visitors
        visitors += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'visitor %d\n' % visitors)
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(('127.0.0.1', 8000), Counter).serve_forever()
