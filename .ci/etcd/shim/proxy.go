package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"time"
)

// proxy listens at the client URL, and passes connections on to the node.
func proxy(m *member) error {
	listener, err := listen(m)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				fmt.Fprintln(os.Stderr, "etcd:", err)
				os.Exit(1)
			}
			go pass(conn, m.bound())
		}
	}()
	return nil
}

// listen opens the listener of the client URL's scheme: `unix`, and `https` or `unixs` for TLS.
func listen(m *member) (net.Listener, error) {
	network, address := "tcp", loopback(m.client.Host)
	if m.client.Scheme == "unix" || m.client.Scheme == "unixs" {
		network, address = "unix", m.client.Host+m.client.Path
		// A killed member leaves its socket behind.
		if err := os.Remove(address); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	listener, err := net.Listen(network, address)
	if err != nil || m.client.Scheme == "unix" {
		return listener, err
	}
	certificate, err := m.tls.load()
	if err != nil {
		return nil, err
	}
	return tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}), nil
}

// load reads the certificate, or makes one.
func (t *tlsFiles) load() (tls.Certificate, error) {
	if !t.automatic {
		return tls.LoadX509KeyPair(t.certificate, t.key)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// pass copies bytes both ways until one side ends.
func pass(client net.Conn, node string) {
	defer client.Close()
	server, err := net.Dial("tcp", node)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		// The client's end of input ends the server's, and with it the other direction.
		defer server.Close()
		io.Copy(server, client)
	}()
	io.Copy(client, server)
}
