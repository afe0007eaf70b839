// Go's own HTTP/2 client and server (net/http), which give windows back in steps as small as the application reads.
//
//	peer serve CERT KEY                 a server under TLS; prints its port
//	peer download URL CA COUNT          COUNT downloads of URL at once, each read 4 KiB at a time
//	peer upload URL CA COUNT SIZE       COUNT uploads of SIZE bytes at once, of known and of unknown length in turn
//	peer trailers URL CA                trailers that were not announced, behind bodies of known and unknown length
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Bytes that the application reads at a time.
const step = 4 << 10

// pattern gives `left` bytes that do not repeat within a frame.
type pattern struct{ at, left int64 }

func (source *pattern) Read(target []byte) (int, error) {
	if source.left == 0 {
		return 0, io.EOF
	}
	count := int64(len(target))
	if count > source.left {
		count = source.left
	}
	for index := range target[:count] {
		at := source.at + int64(index)
		target[index] = byte(at%251 + at/251%7)
	}
	source.at += count
	source.left -= count
	return int(count), nil
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// read takes everything, a step at a time, and gives its length and digest.
func read(source io.Reader) (int64, string, error) {
	sum, buffer, total := sha256.New(), make([]byte, step), int64(0)
	for {
		count, err := source.Read(buffer)
		sum.Write(buffer[:count])
		total += int64(count)
		if err == io.EOF {
			return total, digest(sum), nil
		}
		if err != nil {
			return total, "", err
		}
	}
}

func digest(sum hash.Hash) string { return hex.EncodeToString(sum.Sum(nil)) }

func digestOf(size int64) string {
	sum := sha256.New()
	io.Copy(sum, &pattern{left: size})
	return digest(sum)
}

func number(text string) int64 {
	found, err := strconv.ParseInt(text, 10, 64)
	check(err)
	return found
}

func serve(cert, key string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/sha256", func(writer http.ResponseWriter, request *http.Request) {
		total, sum, err := read(request.Body)
		if err != nil {
			http.Error(writer, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(writer, "%d %s", total, sum)
	})
	mux.HandleFunc("/trailers/", func(writer http.ResponseWriter, request *http.Request) {
		length := strings.TrimPrefix(request.URL.Path, "/trailers/")
		if length != "unknown" {
			writer.Header().Set("Content-Length", length)
		}
		writer.WriteHeader(http.StatusOK)
		writer.Write([]byte("hello"))
		writer.Header().Set(http.TrailerPrefix+"Grpc-Status", "7")
		writer.Header().Set(http.TrailerPrefix+"Grpc-Message", "no such user: ")
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	check((&http.Server{Handler: mux}).ServeTLS(listener, cert, key))
}

func client(ca string) *http.Client {
	pem, err := os.ReadFile(ca)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2: true,
	}}
}

// atOnce runs count calls at the same time, and ends the program where one of them failed.
func atOnce(count int64, call func(index int64) error) {
	results := make(chan error)
	for index := int64(0); index < count; index++ {
		go func(index int64) { results <- call(index) }(index)
	}
	failed := int64(0)
	for index := int64(0); index < count; index++ {
		if err := <-results; err != nil {
			failed++
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if failed > 0 {
		check(fmt.Errorf("%d of %d failed", failed, count))
	}
}

func expect(response *http.Response) error {
	if response.ProtoMajor != 2 || response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s", response.Proto, response.Status)
	}
	return nil
}

func download(url, ca string, count int64) {
	client := client(ca)
	atOnce(count, func(int64) error {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if err := expect(response); err != nil {
			return err
		}
		total, sum, err := read(response.Body)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", total, err)
		}
		if wanted := response.Header.Get("X-Sha256"); sum != wanted {
			return fmt.Errorf("%d bytes with the digest %s, not %s", total, sum, wanted)
		}
		return nil
	})
}

func upload(url, ca string, count, size int64) {
	client, wanted := client(ca), fmt.Sprintf("%d %s", size, digestOf(size))
	atOnce(count, func(index int64) error {
		request, err := http.NewRequest("POST", url, &pattern{left: size})
		check(err)
		if index%2 == 0 {
			request.ContentLength = size
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if err := expect(response); err != nil {
			return err
		}
		said, err := io.ReadAll(response.Body)
		if err == nil && string(said) != wanted {
			err = fmt.Errorf("%q, not %q", said, wanted)
		}
		return err
	})
}

func trailers(url, ca string) {
	client := client(ca)
	for _, length := range []string{"5", "unknown"} {
		response, err := client.Get(url + "/trailers/" + length)
		check(err)
		check(expect(response))
		body, err := io.ReadAll(response.Body)
		check(err)
		status, message := response.Trailer["Grpc-Status"], response.Trailer["Grpc-Message"]
		if string(body) != "hello" || len(status) != 1 || status[0] != "7" ||
			len(message) != 1 || message[0] != "no such user:" {
			check(fmt.Errorf("length %s: %q, %v", length, body, response.Trailer))
		}
	}
}

func main() {
	if len(os.Args) < 4 {
		check(fmt.Errorf("usage: see the head of peer.go"))
	}
	command, more := os.Args[1], os.Args[2:]
	switch command {
	case "serve":
		serve(more[0], more[1])
	case "download":
		download(more[0], more[1], number(more[2]))
	case "upload":
		upload(more[0], more[1], number(more[2]), number(more[3]))
	case "trailers":
		trailers(more[0], more[1])
	default:
		check(fmt.Errorf("unknown command %s", command))
	}
}
