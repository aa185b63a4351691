// Check-ins with Go: `go_net_http pool` commits each by itself, `go_net_http group-commit` as
// tornado_status does. Here is what both share: TLS, the client's identity, and the two sockets that
// announce.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"time"
)

const (
	path    = "/api/client"
	badName = "CN must be a valid email address"
)

// An e-mail address of a web form (HTML Living Standard, 4.10.5.1.5), with a dot in it.
var emailPattern = regexp.MustCompile(
	"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?" +
		`(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+$`)

func main() {
	ways := map[string]func(){"pool": servePool, "group-commit": serveGroupCommit}
	if len(os.Args) != 2 || ways[os.Args[1]] == nil {
		log.Fatal("expected pool or group-commit")
	}
	ways[os.Args[1]]()
}

func setting(name string) string {
	return os.Getenv("PEER_" + name)
}

func databaseURL() string {
	return fmt.Sprintf("host=%s user=%s dbname=%s sslmode=disable",
		setting("DATABASE_SOCKET"), setting("DATABASE_USER"), setting("DATABASE"))
}

// check is for what must not happen at start.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// peer is the client of a connection; email is "" if the CN is no e-mail address.
type peer struct {
	email, ip, issuer, serial string
	port                      int
}

type connectionKey struct{}

// client reads the certificate once a connection: parsing names costs more than the rest.
func client(r *http.Request) *peer {
	known := r.Context().Value(connectionKey{}).(**peer)
	if *known == nil {
		*known = newPeer(r)
	}
	return *known
}

func newPeer(r *http.Request) *peer {
	certificate := r.TLS.PeerCertificates[0]
	email := certificate.Subject.CommonName
	if !emailPattern.MatchString(email) {
		return &peer{}
	}
	address := netip.MustParseAddrPort(r.RemoteAddr)
	ip, port := address.Addr().String(), int(address.Port())
	return &peer{email, ip, certificate.Issuer.String(), certificate.SerialNumber.Text(16), port}
}

// serve never returns.
func serve(handler func(http.ResponseWriter, *http.Request, *peer)) {
	authorities := x509.NewCertPool()
	pem, err := os.ReadFile(setting("CA"))
	check(err)
	if !authorities.AppendCertsFromPEM(pem) {
		log.Fatal("no CA")
	}
	mux := http.NewServeMux()
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost && r.Method != http.MethodPut && r.Method != http.MethodPatch {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		from := client(r)
		if from.email == "" {
			http.Error(w, badName, http.StatusBadRequest)
			return
		}
		handler(w, r, from)
	})
	server := &http.Server{
		Addr:        "127.0.0.1:" + setting("PORT"),
		Handler:     mux,
		IdleTimeout: 180 * time.Second,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, new(*peer)) // HTTP/1.1: one request at a time
		},
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs:  authorities,
		},
	}
	log.Fatal(server.ListenAndServeTLS(setting("CERTIFICATE"), setting("KEY")))
}

// announcer holds one connected socket for the group and one for the broadcast address. Their own
// address chooses the interface; net allows broadcasts by itself.
type announcer []*net.UDPConn

func newAnnouncer() announcer {
	var sockets announcer
	for _, target := range []string{"GROUP", "BROADCAST"} {
		address := net.JoinHostPort(setting(target), setting("ANNOUNCE_PORT"))
		remote, err := net.ResolveUDPAddr("udp4", address)
		check(err)
		socket, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, remote)
		check(err)
		sockets = append(sockets, socket)
	}
	return sockets
}

func (a announcer) send(payload []byte) {
	for _, socket := range a {
		if _, err := socket.Write(payload); err != nil {
			log.Print(err)
		}
	}
}
