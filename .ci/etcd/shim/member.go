package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// The keyspace of the store.
const keyspace = "suite"

// Options of etcd that change nothing that its clients see here, or that have no counterpart.
var ignored = map[string]bool{
	"name": true, "initial-cluster-token": true, "initial-cluster-state": true, "snapshot-count": true,
	"strict-reconfig-check": true, "advertise-client-urls": true, "unsafe-no-fsync": true, "log-level": true,
	"peer-auto-tls": true, "peer-cert-file": true, "peer-key-file": true, "peer-trusted-ca-file": true,
	// Nodes give tokens of their own, whatever kind a test asks for.
	"auth-token": true, "bcrypt-cost": true,
}

// member is a node as etcd's command line describes it.
type member struct {
	dataDir string
	// The address of the node for its peers, and those of all first members.
	address string
	peers   []string
	// The URL for clients.
	client url.URL
	// The bytes that the keyspace may hold; 0 is the default.
	quota int64
	tls   tlsFiles
}

// tlsFiles are the files of a TLS listener, or its request for a certificate of its own.
type tlsFiles struct {
	certificate, key string
	automatic        bool
}

// parse reads etcd's command line. An option that isn't known here is an error: no test may pass because it was overlooked.
func parse(args []string) (*member, error) {
	options, err := split(args)
	if err != nil {
		return nil, err
	}
	m := &member{}
	for name, value := range options {
		if err := m.set(name, value); err != nil {
			return nil, fmt.Errorf("--%s=%s: %w", name, value, err)
		}
	}
	if m.dataDir == "" || m.address == "" || len(m.peers) == 0 || m.client.Host == "" {
		return nil, fmt.Errorf("the data directory, a URL or the members are missing in %q", args)
	}
	return m, nil
}

// split returns the options by name. A value follows `=`, or is the next argument.
func split(args []string) (map[string]string, error) {
	options := map[string]string{}
	for len(args) > 0 {
		name, dashed := strings.CutPrefix(args[0], "--")
		if !dashed {
			return nil, fmt.Errorf("unexpected argument %q", args[0])
		}
		args = args[1:]
		name, value, given := strings.Cut(name, "=")
		if !given && len(args) > 0 && !strings.HasPrefix(args[0], "--") {
			value, args = args[0], args[1:]
		}
		options[name] = value
	}
	return options, nil
}

func (m *member) set(name, value string) (err error) {
	switch name {
	case "data-dir":
		m.dataDir = value
	case "listen-client-urls":
		var parsed *url.URL
		if parsed, err = url.Parse(value); err == nil {
			m.client = *parsed
		}
	case "initial-advertise-peer-urls":
		m.address, err = host(value)
	case "listen-peer-urls":
		_, err = host(value)
	case "initial-cluster":
		for _, peer := range strings.Split(value, ",") {
			_, address, _ := strings.Cut(peer, "=")
			if address, err = host(address); err != nil {
				return err
			}
			m.peers = append(m.peers, address)
		}
	case "quota-backend-bytes":
		m.quota, err = strconv.ParseInt(value, 10, 64)
	case "cert-file":
		m.tls.certificate = value
	case "key-file":
		m.tls.key = value
	case "trusted-ca-file":
		// It is for certificates of clients, which no test sends without `client-cert-auth`.
	case "auto-tls":
		m.tls.automatic = true
	default:
		if !ignored[name] {
			err = fmt.Errorf("the shim doesn't know this option")
		}
	}
	return err
}

func host(text string) (string, error) {
	parsed, err := url.Parse(text)
	if err == nil && parsed.Port() == "" {
		err = fmt.Errorf("%q has no port", text)
	}
	if err != nil {
		return "", err
	}
	return parsed.Host, nil
}

// isProxied is true if clients don't reach the node directly.
func (m *member) isProxied() bool { return m.client.Scheme != "http" }

// bound returns the address of the node's listener for the keyspace. A proxy's is next to the peers' port, two above it: etcd's
// tests give each member five ports, and leave this one free.
func (m *member) bound() string {
	if !m.isProxied() {
		return loopback(m.client.Host)
	}
	port, _ := strconv.Atoi(m.address[strings.LastIndex(m.address, ":")+1:])
	return fmt.Sprintf("127.0.0.1:%d", port+2)
}

// node returns the node's command line.
func (m *member) node() []string {
	return []string{
		"--data-dir", m.dataDir,
		"--listen", loopback(m.address), "--advertise", m.address, "--peers", strings.Join(m.peers, ","),
		"--keyspace-listen", keyspace + "=" + m.bound(),
		"--metrics-listen", "off", "--disk-reserve-bytes", "0", "--shutdown-timeout-ms", "1000",
	}
}

// loopback replaces the name `localhost` by an address, to which a node can bind.
func loopback(address string) string {
	return strings.Replace(address, "localhost:", "127.0.0.1:", 1)
}
