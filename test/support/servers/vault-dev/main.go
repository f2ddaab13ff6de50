// Command vault-dev runs a real Vault core (its engines and its HTTP API) for the tests: initialised, unsealed, with a
// root token of the caller's choice and kv version 2 at secret/. It is what `vault server -dev` does, less the command
// line and the cloud plugins that make that one slow to build. State is in memory, or in -storage, where it outlives
// the process. Do not run `go mod tidy` here: an import of Vault's own tests drags its sdk to a version that does not
// fit; 1.21.1 with sdk 0.20.0 compiles, the later 1.21 releases use an sdk that was never tagged.
package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	log "github.com/hashicorp/go-hclog"
	credJWT "github.com/hashicorp/vault-plugin-auth-jwt"
	credKube "github.com/hashicorp/vault-plugin-auth-kubernetes"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	credAppRole "github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/builtin/plugin"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

// registry is the catalogue of built-in plugins: what `auth enable` and `secrets enable` can mount.
type registry map[consts.PluginType]map[string]any

var builtins = registry{
	consts.PluginTypeSecrets: {
		"database": logical.Factory(database.Factory), "kv": logical.Factory(kv.Factory),
		"transit": logical.Factory(transit.Factory),
	},
	consts.PluginTypeCredential: {
		"approle": logical.Factory(credAppRole.Factory), "jwt": logical.Factory(credJWT.Factory),
		"kubernetes": logical.Factory(credKube.Factory),
	},
	consts.PluginTypeDatabase: {"postgresql-database-plugin": postgresql.New},
}

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r[kind][name]
	return ok
}

func (r registry) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	switch f := r[kind][name].(type) {
	case func() (interface{}, error): // a database plugin makes itself
		return f, true
	case logical.Factory: // a backend is made later: hand out the factory
		return func() (interface{}, error) { return f, nil }, true
	}
	return nil, false
}

func (r registry) Keys(kind consts.PluginType) (names []string) {
	for name := range r[kind] {
		names = append(names, name)
	}
	return names
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func main() {
	listen := flag.String("listen", "127.0.0.1:8200", "address to listen on")
	token := flag.String("root-token", "root", "id of the root token made at the first start")
	dir := flag.String("storage", "", "folder for state (default: memory); the unseal key is written into it, too")
	cert := flag.String("tls-cert", "", "PEM certificate: serve TLS")
	key := flag.String("tls-key", "", "PEM key of the certificate")
	sealed := flag.Bool("sealed", false, "leave an initialised store sealed")
	maxTTL := flag.Duration("max-ttl", 768*time.Hour, "largest lease and token lifetime")
	level := flag.String("log-level", "info", "log level")
	flag.Parse()
	if err := run(*listen, *token, *dir, *cert, *key, *sealed, *maxTTL, *level); err != nil {
		fmt.Fprintln(os.Stderr, "vault-dev:", err)
		os.Exit(1)
	}
}

func run(listen, token, dir, cert, key string, sealed bool, maxTTL time.Duration, level string) error {
	logger := log.New(&log.LoggerOptions{Level: log.LevelFromString(level)})
	var store physical.Backend
	var err error
	kind := "inmem"
	if dir == "" {
		store, err = inmem.NewInmem(nil, logger)
	} else {
		kind = "file"
		store, err = file.NewFileBackend(map[string]string{"path": filepath.Join(dir, "data")}, logger)
	}
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	scheme, settings := "http", &configutil.Listener{Type: "tcp", Address: listen, TLSDisable: cert == ""}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return err
		}
		listener = tls.NewListener(listener, &tls.Config{
			Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
			NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.RequestClientCert})
		scheme = "https"
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical: store, StorageType: kind, Logger: logger, DisableMlock: true, BuiltinRegistry: builtins,
		RedirectAddr: scheme + "://" + listen, DefaultLeaseTTL: min(maxTTL, 768*time.Hour), MaxLeaseTTL: maxTTL,
		LogicalBackends: map[string]logical.Factory{
			"kv": kv.Factory, "database": database.Factory, "plugin": plugin.Factory},
		CredentialBackends: map[string]logical.Factory{"plugin": plugin.Factory},
		AuditBackends:      map[string]audit.Factory{"file": audit.NewFileBackend},
	})
	if err != nil {
		return fmt.Errorf("core: %w", err)
	}
	if err := open(core, dir, token, sealed); err != nil {
		return err
	}

	server := &http.Server{
		Handler:           vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: settings}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		_ = server.Close()
	}()
	fmt.Println("vault-dev: serving", scheme+"://"+listen)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return core.Shutdown()
}

// open initialises a new store, or unseals a known one with the key it left in dir.
func open(core *vault.Core, dir, token string, sealed bool) error {
	ctx := namespace.RootContext(context.Background())
	keyFile := filepath.Join(dir, "unseal-key")
	if known, err := core.Initialized(ctx); err != nil {
		return err
	} else if known {
		if sealed {
			return nil
		}
		text, err := os.ReadFile(keyFile)
		if err != nil {
			return err
		}
		share, err := hex.DecodeString(string(text))
		if err != nil {
			return err
		}
		_, err = core.Unseal(share)
		return err
	}

	made, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig: &vault.SealConfig{Type: "shamir", SecretShares: 1, SecretThreshold: 1}})
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if dir != "" {
		if err := os.WriteFile(keyFile, []byte(hex.EncodeToString(made.SecretShares[0])), 0o600); err != nil {
			return err
		}
	}
	if _, err := core.Unseal(made.SecretShares[0]); err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	for _, step := range []struct {
		path string
		data map[string]any
	}{
		{"auth/token/create", map[string]any{
			"id": token, "policies": []string{"root"}, "no_parent": true, "no_default_policy": true}},
		{"sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}}},
		{"auth/token/revoke-self", nil},
	} {
		answer, err := core.HandleRequest(ctx, &logical.Request{ID: "dev", Operation: logical.UpdateOperation,
			ClientToken: made.RootToken, Path: step.path, Data: step.data})
		if err == nil && answer != nil && answer.IsError() {
			err = answer.Error()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.path, err)
		}
	}
	return nil
}
