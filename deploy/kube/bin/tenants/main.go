// Load for API servers of Kubernetes: it makes objects in each, updates them in turn, and checks that a watch sees each change once and in
// order, and that the API server stays ready. SIGTERM ends it; then it prints a report, and fails if anything was lost.
//
//	tenants -tenants FILE -ca FILE [-objects N] [-rate N]
//
// Each line of the file has the name of a tenant, the URL of its API server, and a token, with tabs between.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	file := flag.String("tenants", "", "the file with the tenants")
	ca := flag.String("ca", "", "the certificate of the API servers' authority")
	objects := flag.Int("objects", 100, "the objects of each tenant")
	rate := flag.Int("rate", 5, "the updates a second of each tenant")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *file, *ca, *objects, *rate); err != nil {
		fmt.Fprintln(os.Stderr, "tenants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file, ca string, objects, rate int) error {
	if objects < 1 || rate < 1 {
		return fmt.Errorf("-objects and -rate must be at least 1")
	}
	roots := x509.NewCertPool()
	certificate, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(certificate) {
		return fmt.Errorf("%s has no certificate", ca)
	}
	tenants, err := read(file, roots)
	if err != nil {
		return err
	}
	if err := each(tenants, func(t *tenant) error { return t.prepare(ctx, objects) }); err != nil {
		return err
	}
	fmt.Printf("ready: %d objects in each of %d API servers\n", objects, len(tenants))
	ctx, end := context.WithCancel(ctx)
	defer end()
	err = each(tenants, func(t *tenant) error {
		// The end of one ends all, so that whoever waits hears of it.
		defer end()
		return t.work(ctx, rate)
	})
	for _, t := range tenants {
		fmt.Println(t.report())
	}
	return err
}

// each runs a step of all tenants at once, and returns the first error.
func each(tenants []*tenant, step func(*tenant) error) error {
	errors := make(chan error, len(tenants))
	var group sync.WaitGroup
	for _, t := range tenants {
		group.Go(func() {
			if err := step(t); err != nil {
				errors <- fmt.Errorf("%s: %w", t.name, err)
			}
		})
	}
	group.Wait()
	close(errors)
	return <-errors
}

func read(file string, roots *x509.CertPool) ([]*tenant, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var tenants []*tenant
	for line := range strings.Lines(string(content)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 3 {
			return nil, fmt.Errorf("%s: a line must have a name, a URL and a token, with tabs between", file)
		}
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots},
			ForceAttemptHTTP2: true,
			// A connection whose other end is gone is noticed.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		}
		tenants = append(tenants, &tenant{
			name: fields[0], url: fields[1], token: fields[2],
			client: &http.Client{Transport: transport},
		})
	}
	if len(tenants) == 0 {
		return nil, fmt.Errorf("%s names no tenant", file)
	}
	return tenants, nil
}
