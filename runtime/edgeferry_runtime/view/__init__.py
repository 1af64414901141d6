"""The live page: picture, figures and versions for people, health and metrics for machines, off by default.

server.py    the socket, uvicorn in a thread of its own, what a connection may cost
app.py       the routes, the page and its picture     api.py       what machines ask
access.py    who may do what                          http.py      requests and answers
watching.py  what the loop tells                      facade.py    what is asked of it
picture.py   encoded once for all who look            page.py      the page's files
metrics.py   Prometheus                               predict.py   a picture in, its result out
"""
