#!/bin/bash
# Exits with 0 if http://127.0.0.1:PORT/PATH answers 200: the image has no HTTP client.
set -eu
exec 3<>"/dev/tcp/127.0.0.1/$1"
printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$2" >&3
read -r _ status _ <&3
[ "$status" = 200 ]
